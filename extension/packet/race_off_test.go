//go:build !race

package packet_test

const broadcasts = 10_000

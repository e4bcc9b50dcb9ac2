//go:build race

package packet_test

// broadcasts is how many TestP06HundredClients sends: the race detector makes each many times as dear.
const broadcasts = 300

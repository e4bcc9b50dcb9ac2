//go:build !race

package enginetest

// raceEnabled says that the race detector is there, which makes everything slow.
const raceEnabled = false

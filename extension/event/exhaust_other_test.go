//go:build !unix

package event

const childEnv = "ARPC_EVENT_CHILD"

// exhaustChild is for systems with a limit on descriptors.
func exhaustChild() {}

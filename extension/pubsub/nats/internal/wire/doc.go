// Package wire is how the engine's subjects and payloads are made and read. It knows nothing of NATS but what a subject is.
package wire

// Package quickstart has a small program for getty, in its tests, that extension/session has too.
package quickstart

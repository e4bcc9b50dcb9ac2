// Package gettypeer tests extension/session against getty, as apache/dubbo-getty publishes it: each as the client and as the server
// of the other. It is a module of its own, so that nobody else depends on getty.
package gettypeer

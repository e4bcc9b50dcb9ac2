// Package jsclient holds the browser client for Go programs that serve it to their pages. How to use it in a page is said in
// the README beside it.
//
//	dist, err := fs.Sub(jsclient.Files, "dist")
//	mux.Handle("/arpc/", http.StripPrefix("/arpc", http.FileServerFS(dist)))   // /arpc/arpc.mjs
package jsclient

import "embed"

// Files has the ES modules dist/arpc.mjs, dist/pubsub.mjs, which imports the other from beside it, and dist/action.mjs, and
// dist/arpc.js, a classic script.
//
//go:embed dist/arpc.js dist/arpc.mjs dist/pubsub.mjs dist/action.mjs
var Files embed.FS

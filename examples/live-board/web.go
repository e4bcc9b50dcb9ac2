package main

import (
	"embed"
	"io/fs"
	"net/http"

	"github.com/arpc-go/arpc/extension/jsclient"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/websocket"
)

//go:embed page
var page embed.FS

// newMux serves the page, the modules that it imports, the WebSocket, and notes from elsewhere.
func newMux(board *pubsub.Server) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /arpc", websocket.NewHandler(board.Server, websocket.ReadLimit(2*maxBody)))
	mux.Handle("GET /arpc.mjs", files(jsclient.Files, "dist"))
	mux.Handle("GET /pubsub.mjs", files(jsclient.Files, "dist"))
	mux.Handle("POST /notes", http.NewCrossOriginProtection().Handler(postNote(board)))
	mux.Handle("GET /", files(page, "page"))
	return mux
}

// files serves a directory to pages that may load nothing from elsewhere.
func files(from fs.FS, dir string) http.Handler {
	sub, err := fs.Sub(from, dir)
	if err != nil {
		panic(err) // the name is wrong
	}
	server := http.FileServerFS(sub)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-cache") // embedded files have no time
		server.ServeHTTP(w, r)
	})
}

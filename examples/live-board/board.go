package main

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

// topic is the board: its history is the notes that are on it, its members are who has it open.
const topic = "board"

// The limits.
const (
	maxNotes   = 200
	maxText    = 500 // characters
	maxMessage = 4 << 10
	maxBody    = 16 << 10 // of a call
)

// Note is a message of the topic. When and where it stands is the message's.
type Note struct {
	Text string `json:"text"`
	By   string `json:"by"`
}

// newBoard returns a server with the one topic; a nil engine is the memory of this process.
func newBoard(engine pubsub.Engine) (*pubsub.Server, error) {
	board, err := pubsub.NewServerWith(pubsub.Config{
		Engine:  engine,
		Require: pubsub.Capabilities{History: true, Presence: true, Idempotency: true},
		Topics: func(string) pubsub.TopicConfig {
			return pubsub.TopicConfig{HistorySize: maxNotes, HistoryAge: 24 * time.Hour, Presence: true}
		},
		Authorize: func(_ *arpc.Context, _ pubsub.Action, name string) error {
			if name != topic {
				return errors.New("there is nothing but the board")
			}
			return nil
		},
		Limits: pubsub.Limits{MessageSize: maxMessage, Info: 256, Subscriptions: 4},
	}, arpc.NewHandler())
	if err != nil {
		return nil, err
	}
	board.Handler.SetMaxBodyLen(maxBody)
	return board, nil
}

// postNote writes the body of an HTTP request on the board, for programs that have no arpc: curl -d text http://…/notes?by=me
func postNote(board *pubsub.Server) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage/2))
		if err != nil {
			http.Error(w, "a note is too long", http.StatusRequestEntityTooLarge)
			return
		}
		note := Note{Text: strings.TrimSpace(string(body)), By: r.URL.Query().Get("by")}
		if note.By == "" {
			note.By = "curl"
		}
		if n := utf8.RuneCountInString(note.Text); n == 0 || n > maxText || utf8.RuneCountInString(note.By) > 32 || !utf8.Valid(body) {
			http.Error(w, "a note has 1 to 500 characters, and a name 1 to 32", http.StatusBadRequest)
			return
		}
		receipt, err := board.PublishWith(r.Context(), topic, note)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(receipt.Position) //nolint:errcheck // the connection's end says more
	}
}

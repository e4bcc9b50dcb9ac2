package wire

import (
	"strings"
	"testing"

	"github.com/arpc-go/arpc/extension/pubsub"
)

func TestSubjects(t *testing.T) {
	for _, test := range []struct {
		name     string
		wildcard bool
		want     string
	}{
		{"a.b", false, "p.a.b"},
		{"a.*.>", true, "p.a.*.>"},
		{"a.*.>", false, "p.a.%2A.%3E"},
		{"a*.x>", true, "p.a%2A.x%3E"},
		{".", false, "p.%.%"},
		{"a b\x00%ü", false, "p.a%20b%00%25%C3%BC"},
		{"$JS.API", false, "p.$JS.API"},
	} {
		if got := Subject("p.", pubsub.Filter{Name: test.name, Wildcard: test.wildcard}); got != test.want {
			t.Errorf("%q: %q, not %q", test.name, got, test.want)
		}
	}
	for _, bad := range []string{"", ".", "a.", "%2", "%zz", "%2a", "%41", "%%", "a b", "*", "a.>", "ü"} {
		if topic, ok := ParseTopic(bad); ok {
			t.Errorf("%q is taken for %q", bad, topic)
		}
	}
}

// FuzzSubject: every topic is one valid subject, and nothing else is.
func FuzzSubject(f *testing.F) {
	for _, s := range []string{"a.b", "*", ">", "..", "a b\r\n", "%", "%25", "\x00\xff", "ü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		const head = "p.m."
		subject := TopicSubject(head, s)
		tokens := strings.TrimPrefix(subject, head)
		if topic, ok := ParseTopic(tokens); !ok || topic != s {
			t.Fatalf("%q became %q and %q", s, subject, topic)
		}
		for token := range strings.SplitSeq(tokens, ".") {
			if token == "" || token == "*" || token == ">" || strings.ContainsAny(token, " \t\r\n\x00") {
				t.Fatalf("%q has the token %q", s, token)
			}
		}
		if topic, ok := ParseTopic(s); ok && TopicSubject("", topic) != s { // as a peer's
			t.Fatalf("%q and %q are the same topic", s, TopicSubject("", topic))
		}
	})
}

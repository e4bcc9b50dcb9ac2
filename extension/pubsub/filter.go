package pubsub

import (
	"strings"

	"github.com/arpc-go/arpc"
)

var (
	errWildcardTopic = &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "invalid topic: the words * and > are for subscriptions"}
	errWords         = &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "invalid topic: a pattern has at most 32 words"}
	errPattern       = &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "invalid topic: > must be the last word of a pattern"}
)

// maxWords is the number of words that a pattern may have, as each costs memory.
const maxWords = 32

// newFilter returns the filter that a subscription with a name means.
func newFilter(name string) (Filter, error) {
	f := Filter{Name: name, Wildcard: hasWildcard(name)}
	if err := checkName(name); err != nil {
		return f, err
	}
	if f.Wildcard && strings.Count(name, ".") >= maxWords {
		return f, errWords
	}
	if i := strings.Index("."+name+".", ".>."); i >= 0 && i != len(name)-1 {
		return f, errPattern
	}
	return f, nil
}

// hasWildcard reports whether a word of the name is * or >.
func hasWildcard(name string) bool {
	if !strings.ContainsAny(name, "*>") {
		return false
	}
	for word := range strings.SplitSeq(name, ".") {
		if word == "*" || word == ">" {
			return true
		}
	}
	return false
}

// Match reports whether the filter matches a topic.
func (f Filter) Match(topic string) bool {
	if !f.Wildcard {
		return f.Name == topic
	}
	pattern, more := f.Name, true
	for more {
		var want, word string
		var left bool
		want, pattern, more = strings.Cut(pattern, ".")
		word, topic, left = strings.Cut(topic, ".")
		switch {
		case want == ">":
			return true
		case want != "*" && want != word, more != left:
			return false
		}
	}
	return true
}

// filterTree finds the values of the patterns that match a topic, in time that depends on the words of the topic and not on the
// number of patterns.
type filterTree[V any] struct {
	next map[string]*filterTree[V]
	any  *filterTree[V] // *
	here *V             // the pattern ends here
	rest *V             // the pattern ends with >
}

// at returns where the value of a pattern is stored, making its place.
func (t *filterTree[V]) at(pattern string) **V {
	for {
		word, rest, more := strings.Cut(pattern, ".")
		var child *filterTree[V]
		switch word {
		case ">":
			return &t.rest
		case "*":
			if t.any == nil {
				t.any = &filterTree[V]{}
			}
			child = t.any
		default:
			if child = t.next[word]; child == nil {
				if t.next == nil {
					t.next = map[string]*filterTree[V]{}
				}
				child = &filterTree[V]{}
				t.next[strings.Clone(word)] = child
			}
		}
		if t = child; !more {
			return &t.here
		}
		pattern = rest
	}
}

// remove forgets a pattern, and the places that only it needed. It reports whether t is empty.
func (t *filterTree[V]) remove(pattern string) bool {
	word, rest, more := strings.Cut(pattern, ".")
	switch word {
	case ">":
		t.rest = nil
	case "*":
		if t.any != nil && t.any.removeBelow(rest, more) {
			t.any = nil
		}
	default:
		if child := t.next[word]; child != nil && child.removeBelow(rest, more) {
			delete(t.next, word)
		}
	}
	return t.here == nil && t.rest == nil && t.any == nil && len(t.next) == 0
}

func (t *filterTree[V]) removeBelow(rest string, more bool) bool {
	if more {
		return t.remove(rest)
	}
	t.here = nil
	return t.rest == nil && t.any == nil && len(t.next) == 0
}

// match appends the values of the patterns that match a topic.
func (t *filterTree[V]) match(out []*V, topic string) []*V {
	if t.rest != nil {
		out = append(out, t.rest)
	}
	word, rest, more := strings.Cut(topic, ".")
	for _, child := range [...]*filterTree[V]{t.next[word], t.any} {
		switch {
		case child == nil:
		case more:
			out = child.match(out, rest)
		case child.here != nil:
			out = append(out, child.here)
		}
	}
	return out
}

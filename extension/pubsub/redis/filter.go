package redis

import (
	"strings"

	"github.com/arpc-go/arpc/extension/pubsub"
)

// maxStars is how many stars a pattern may have for Redis, whose work grows with each. What is behind them is for us to match.
const maxStars = 3

// subscription returns what Redis has to be asked for to get all that f matches: a channel or a pattern. A pattern matches more
// than f, as its stars match dots too.
func (c *Config) subscription(f pubsub.Filter) (name string, pattern bool) {
	if !f.Wildcard {
		return c.channel(f.Name), false
	}
	var b strings.Builder
	b.WriteString(escape(c.channel("")))
	stars, first := 0, true
	for word := range strings.SplitSeq(f.Name, ".") {
		if !first {
			b.WriteByte('.')
		}
		first = false
		switch word {
		case "*", ">":
			b.WriteByte('*')
			stars++
		default:
			b.WriteString(escape(word))
		}
		if stars == maxStars {
			break
		}
	}
	return b.String(), true
}

// escape takes the meaning from the characters that mean something in patterns of Redis.
func escape(s string) string {
	if !strings.ContainsAny(s, `\*?[]^-`) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(`\*?[]^-`, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

package wire

import (
	"strings"

	"github.com/arpc-go/arpc/extension/pubsub"
)

// emptyWord is the token of a word without characters, which NATS does not allow. Nothing else is escaped to it.
const emptyWord = "%"

const hexDigits = "0123456789ABCDEF"

// plainByte says that a byte stands for itself in a token. Everything that means something to NATS, what is not printable, and the
// sign of the escaping itself, do not.
func plainByte(c byte) bool {
	switch c {
	case '*', '>', '%', '.':
		return false
	}
	return c > ' ' && c < 0x7f
}

// appendWord appends the token of one word of a topic.
func appendWord(b []byte, word string) []byte {
	if word == "" {
		return append(b, emptyWord...)
	}
	for i := range len(word) {
		if c := word[i]; plainByte(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return b
}

// TopicSubject returns the tokens that stand for a topic, behind head. Each word is a token, so that patterns of topics and of
// subjects mean the same.
func TopicSubject(head, topic string) string {
	return Subject(head, pubsub.Filter{Name: topic})
}

// Subject is TopicSubject for a filter.
func Subject(head string, f pubsub.Filter) string {
	b := append(make([]byte, 0, len(head)+len(f.Name)+16), head...)
	first := true
	for word := range strings.SplitSeq(f.Name, ".") {
		if !first {
			b = append(b, '.')
		}
		first = false
		if f.Wildcard && (word == "*" || word == ">") {
			b = append(b, word...)
		} else {
			b = appendWord(b, word)
		}
	}
	return string(b)
}

// ParseTopic returns the topic that tokens stand for. It reports false if TopicSubject does not make such tokens.
func ParseTopic(tokens string) (string, bool) {
	b := make([]byte, 0, len(tokens))
	first := true
	for token := range strings.SplitSeq(tokens, ".") {
		if !first {
			b = append(b, '.')
		}
		first = false
		if token == emptyWord {
			continue
		}
		if token == "" {
			return "", false
		}
		for i := 0; i < len(token); i++ {
			c := token[i]
			if c == '%' {
				if i+2 >= len(token) {
					return "", false
				}
				hi, lo := strings.IndexByte(hexDigits, token[i+1]), strings.IndexByte(hexDigits, token[i+2])
				if hi < 0 || lo < 0 {
					return "", false
				}
				if c = byte(hi<<4 | lo); plainByte(c) {
					return "", false
				}
				i += 2
			} else if !plainByte(c) {
				return "", false
			}
			b = append(b, c)
		}
	}
	return string(b), true
}

package zookeeper

import (
	"bytes"
	"testing"
)

// FuzzAnswer reads what a server may say first.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x24\x00\x00\x00\x00\x00\x00\x0f\xa0\x01\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x10"))
	f.Add([]byte("\x00\x00\x00\x24\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")) // expired
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n"))
	f.Fuzz(func(t *testing.T, head []byte) {
		if len(head) > answerLen {
			head = head[:answerLen]
		}
		granted, err := parseAnswer(head)
		expired := len(head) == answerLen && bytes.Equal(head[12:], make([]byte, 8))
		if err == nil && len(head) == answerLen && !expired && (granted < minSession || granted > maxSession) {
			t.Errorf("a session timeout of %v", granted)
		}
		for i := range head { // what is wrong stays wrong
			if _, early := parseAnswer(head[:i]); early != nil && err == nil {
				t.Errorf("the first %d bytes are wrong, all are not", i)
			}
		}
	})
}

package pubsub

import (
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestGolden compares the examples of docs/pubsub.md with what is sent, and reads them.
func TestGolden(t *testing.T) {
	p := Position{0x1122334455667, 258}
	pub, err := (&publication{topic: "a.b", key: "k", id: "i", data: []byte("hi")}).append(nil)
	must(t, err)
	examples := map[string][]byte{
		"message":            messageFrame(&Message{Topic: "a.b", Data: []byte("hi"), Timestamp: 0x1122334455667788}, 7, false, Position{}).Buffer,
		"message-all-fields": messageFrame(&Message{Topic: "a.b", Key: "k", Data: []byte("hi"), Timestamp: 0x1122334455667788, Position: p}, 7, true, Position{p.Epoch, 256}).Buffer,
		"message-follows":    messageFrame(&Message{Topic: "a.b", Data: []byte("hi"), Timestamp: 0x1122334455667788, Position: p}, 7, false, Position{p.Epoch, 257}).Buffer,
		"start-recovered":    startFrame(7, 1, true, p).Buffer,
		"lost":               lostFrame(1, 3).Buffer,
		"joined":             presenceFrame(7, "a", Member{"m1", []byte("{}")}, true).Buffer,
		"interrupted":        textFrame(eventInterrupted, 7, "why").Buffer,
		"again":              textFrame(eventAgain, 7, "").Buffer,
		"ended":              endedFrame(1, ErrInvalidPassword).Buffer,
		"publication":        pub,
		"receipt":            Receipt{p, true}.append(nil),
	}
	doc := readDoc(t)
	n := 0
	for _, line := range regexp.MustCompile(`(?m)^([a-z-]+) +([0-9a-f]{16,})$`).FindAllStringSubmatch(doc, -1) {
		n++
		if got := hex.EncodeToString(examples[line[1]]); got != line[2] {
			t.Errorf("%s is %s, in the document %s", line[1], got, line[2])
		}
	}
	if n != len(examples) {
		t.Errorf("the document has %d examples, not %d", n, len(examples))
	}
}

func readDoc(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/pubsub.md")
	must(t, err)
	return string(b)
}

// heldBy names the tests that hold each requirement of docs/pubsub.md.
var heldBy = map[string]string{
	"PS-SUB-1": "TestSameToken", "PS-SUB-2": "TestRecoversUnderFire TestOverflow TestSameToken", "PS-SUB-3": "TestWildcardsAndSeveralSubscriptions TestSameToken",
	"PS-SUB-4": "TestStrayEvents", "PS-SUB-5": "TestWildcardsAndSeveralSubscriptions",
	"PS-REC-1": "TestRecoversUnderFire TestFromLastAndHistory", "PS-REC-2": "TestRecoversUnderFire TestReconnect TestInterruptedEngine", "PS-REC-3": "TestStrayEvents",
	"PS-REC-4": "TestBlockedHandlerLosesNothing TestHole", "PS-REC-5": "TestInterruptedEngine TestHole",
	"PS-LOST-1": "TestOverflow", "PS-PUB-1": "TestFromLastAndHistory", "PS-PUB-2": "TestWildcardsAndSeveralSubscriptions",
	"PS-LIM-1": "TestLimits TestTopicLimits", "PS-BAD-1": "TestMalformedRequests FuzzRequests TestStrayEvents",
}

// TestEveryRequirementIsHeld compares the document with heldBy, and looks for the tests that either names.
func TestEveryRequirementIsHeld(t *testing.T) {
	var tests strings.Builder
	for _, dir := range []string{".", "enginetest", "nats", "redis"} {
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), "_test.go") {
				b, err := os.ReadFile(dir + "/" + e.Name())
				must(t, err)
				tests.Write(b)
			}
		}
	}
	isThere := func(name string) bool { return strings.Contains(tests.String(), "\nfunc "+name+"(") }
	doc := readDoc(t)
	defined := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| (PS-[A-Z]+-\d+) \|`).FindAllStringSubmatch(doc, -1) {
		defined[m[1]] = true
		if heldBy[m[1]] == "" {
			t.Errorf("%s is held by no test", m[1])
		}
	}
	for id, names := range heldBy {
		if !defined[id] {
			t.Errorf("%s is not in the document", id)
		}
		for name := range strings.FieldsSeq(names) {
			if !isThere(name) {
				t.Errorf("%s: there is no test %s", id, name)
			}
		}
	}
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w+)`").FindAllStringSubmatch(doc, -1) {
		if !isThere(m[1]) {
			t.Errorf("the document names %s, which is not there", m[1])
		}
	}
}

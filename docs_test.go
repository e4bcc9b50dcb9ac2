package arpc

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// heldBy names the tests that hold each requirement of docs/protocol.md.
var heldBy = map[string]string{
	"V1-CONN-1": "TestGoldenResponder", "V1-CONN-2": "TestGoldenResponder TestFragmentation",
	"V1-CONN-3": "TestStop TestReconnect TestContextEndsWithItsConnection",

	"V1-FRAME-1": "TestGoldenCaller TestGoldenResponder", "V1-FRAME-2": "TestGoldenCaller TestGoldenResponder",
	"V1-FRAME-3": "TestGoldenResponder TestGoldenCaller", "V1-FRAME-4": "TestGoldenResponder", "V1-FRAME-5": "TestBadCommand TestHostileFrames TestProtocolHello",
	"V1-FRAME-6": "TestArgumentErrors TestHandlePanics", "V1-FRAME-7": "TestBadMethodLength TestHostileFrames",
	"V1-FRAME-8": "TestProtocolMethodsAreBytes", "V1-FRAME-9": "TestHostileFrames TestHostileAnnouncements TestLongestBody",
	"V1-FRAME-10": "TestGoldenResponder TestFragmentation TestHostileOneByteAtATime",

	"V1-SEQ-1": "TestGoldenCaller TestCallbackRunsOnce", "V1-SEQ-2": "TestGoldenResponder", "V1-SEQ-3": "TestGoldenBothDirectionsAtOnce",
	"V1-REQ-1": "TestGoldenCaller", "V1-REQ-2": "TestGoldenResponder", "V1-REQ-3": "TestAnswers TestPanickingHandler TestHandlerWithoutAnswer",
	"V1-REQ-4": "TestGoldenResponder TestUnknownMethod", "V1-REQ-5": "TestAnswerLater TestGoldenResponder",
	"V1-RSP-1": "TestGoldenResponder", "V1-RSP-2": "TestGoldenResponder", "V1-RSP-3": "TestGoldenResponder TestGoldenCaller",
	"V1-RSP-4": "TestGoldenResponder", "V1-RSP-5": "TestCancelledCall TestHostileAnswers", "V1-RSP-6": "TestSessionMiss TestHostileAnswers",
	"V1-RSP-7":  "TestProtocolMethodOfAnAnswer",
	"V1-NOTE-1": "TestAnswers", "V1-NOTE-2": "TestGoldenResponder TestGoldenCaller", "V1-NOTE-3": "TestUnknownMethod TestHostileFrames",
	"V1-PING-1": "TestAnswersBeforeABlockedHandlerAreOut", "V1-PING-2": "TestPong", "V1-PING-3": "TestPong", "V1-PING-4": "TestCodersInOrderAndReverse",
	"V1-PING-5": "TestHostileSilence",
	"V1-PAY-1":  "TestBind TestGoldenResponder", "V1-PAY-2": "TestBind", "V1-PAY-3": "TestBind", "V1-PAY-4": "TestAnswers",

	"V1-STR-1": "TestProtocolStreamsV1", "V1-STR-2": "TestProtocolStreamsV1", "V1-STR-3": "TestProtocolStreamsV1", "V1-STR-4": "TestProtocolStreamsV1",
	"V1-STR-5": "TestProtocolStreamsV1", "V1-STR-6": "TestProtocolStreamsV1", "V1-STR-7": "TestProtocolStreamsV1",

	"V1-COD-1": "TestCodersInOrderAndReverse", "V1-COD-2": "TestCodersInOrderAndReverse TestBadCoders", "V1-COD-3": "TestCodersInOrderAndReverse TestBadCoders",
	"V1-COD-4": "TestDecodeIgnoresPlainFrames",
	"V1-APP-1": "TestGoldenVector TestDecodeRefusesBadFrames", "V1-APP-2": "TestEncodeFails",
	"V1-PUB-1": "TestCompatible", "V1-PUB-2": "TestCompatible", "V1-PUB-3": "TestCompatible", "V1-PUB-4": "TestReconnect TestPublishedPubsubClient",
	"V1-GZ-1": "TestRoundTrip TestDecodeGoldenVector", "V1-GZ-2": "TestDecodeGoldenVector TestRoundTrip", "V1-GZ-3": "TestDecodedLenIsLimited TestBomb",
	"V1-ERR-1": "TestUnexpectedEOF TestFragmentation", "V1-ERR-2": "TestHostileFrames TestHostileVanishing TestHostileNeverReads",
	"V1-EXT-1": "TestGoldenResponder TestProtocolToVersion1", "V1-EXT-2": "TestProtocolToVersion1",

	"V2-FRAME-1": "TestProtocolExamples TestProtocolStreamViolations TestProtocolCancel", "V2-FRAME-2": "TestProtocolToVersion1 TestFeaturesAreSeparate",
	"V2-FRAME-3": "TestCancelWithCoders TestStreamCoders",

	"V2-HELLO-1": "TestProtocolHelloAnswer TestCallsWaitForHello", "V2-HELLO-2": "TestProtocolHello", "V2-HELLO-3": "TestProtocolHello TestProtocolNothingBeforeThePong TestProtocolStreamBeforeHello",
	"V2-HELLO-4": "TestProtocolHelloAnswer", "V2-HELLO-5": "TestProtocolHello", "V2-HELLO-6": "TestProtocolHello TestProtocolHelloAnswer",
	"V2-HELLO-7": "TestProtocolHelloAnswer", "V2-HELLO-8": "TestProtocolHelloAnswer", "V2-HELLO-9": "TestProtocolHelloAnswer", "V2-HELLO-10": "TestProtocolHelloAnswer",
	"V2-HELLO-11": "TestProtocolPeersLimits TestProtocolSmallBodyLimit",

	"V2-CODEC-1": "TestUseCodec TestUseCodecUnknownToThePeer", "V2-CODEC-2": "TestCoderNegotiation TestCoderOnTheWire",
	"V2-EXT-4": "TestReservedKeysArrive", "V2-CODE-6": "TestRefused TestRetryAfter",
	"V2-EXT-1": "TestProtocolExtensions", "V2-EXT-2": "TestProtocolExtensions", "V2-EXT-3": "TestProtocolExtensions",
	"V2-DL-1": "TestProtocolExamples TestProtocolDeadline TestProtocolStreams", "V2-DL-2": "TestProtocolDeadline", "V2-DL-3": "TestProtocolDeadline TestProtocolExtensions",
	"V2-DL-4": "TestProtocolStreams", "V2-DL-5": "TestProtocolPeersLimits",
	"V2-META-1": "TestProtocolExamples TestProtocolExtensions TestProtocolStreams", "V2-META-2": "TestProtocolExtensions", "V2-META-3": "TestProtocolPeersLimits",
	"V2-META-4": "TestProtocolExtensions TestProtocolExamples",

	"V2-CAN-1": "TestProtocolCancel TestProtocolDeadline", "V2-CAN-2": "TestProtocolCancel", "V2-CAN-3": "TestProtocolCancel", "V2-CAN-4": "TestProtocolCancel",
	"V2-CAN-5": "TestProtocolCancel", "V2-CAN-6": "TestProtocolCancel",

	"V2-CODE-1": "TestProtocolCodedErrors", "V2-CODE-2": "TestProtocolErrorWithoutCode", "V2-CODE-3": "TestProtocolCodedErrors", "V2-CODE-4": "TestProtocolCodedErrors",
	"V2-CODE-5": "TestProtocolCodedErrors",

	"V2-STR-1": "TestProtocolStreams TestProtocolExamples", "V2-STR-2": "TestProtocolStreams", "V2-STR-3": "TestProtocolStreams", "V2-STR-4": "TestProtocolStreams",
	"V2-STR-5": "TestProtocolStreams", "V2-STR-6": "TestProtocolStreams TestProtocolStreamViolations", "V2-STR-7": "TestProtocolStreams TestProtocolCreditOfTheUnwanted",
	"V2-STR-8": "TestProtocolStreamViolations", "V2-STR-9": "TestProtocolReset",
	"V2-FLOW-1": "TestProtocolCredit", "V2-FLOW-2": "TestProtocolCredit", "V2-FLOW-3": "TestProtocolCredit", "V2-FLOW-4": "TestProtocolConnectionWindow",
	"V2-FLOW-5": "TestProtocolStreamViolations", "V2-FLOW-6": "TestProtocolCreditOfTheUnwanted", "V2-FLOW-7": "TestStreamFairness", "V2-FLOW-8": "TestProtocolEmptyMessages",
	"V2-RST-1": "TestProtocolReset", "V2-RST-2": "TestProtocolReset TestProtocolStreams", "V2-RST-3": "TestProtocolReset TestProtocolStreams",
	"V2-RST-4": "TestProtocolReset TestProtocolAuth TestProtocolGoAway", "V2-RST-5": "TestProtocolPeersLimits",

	"V2-GO-1": "TestProtocolGoAway", "V2-GO-2": "TestProtocolGoAway", "V2-GO-3": "TestProtocolGoAway TestProtocolExamples", "V2-GO-4": "TestProtocolGoAway",
	"V2-GO-5": "TestProtocolGoAway", "V2-GO-6": "TestProtocolGoAway TestDrainLosesNothing",
	"V2-AUTH-1": "TestProtocolAuth", "V2-AUTH-2": "TestProtocolAuth", "V2-AUTH-3": "TestProtocolAuth", "V2-AUTH-4": "TestProtocolAuth", "V2-AUTH-5": "TestProtocolAuth",
	"V1-HTTP-1": "TestBinaryRefusals",
	"V1-WS-1":   "TestFramesPerMessage", "V1-WS-2": "TestMessagesAreAStream", "V1-WS-3": "TestPathAndTLS",
	"V2-OLD-1": "TestProtocolToVersion1 TestProtocolStreamsV1 TestProtocolHelloAnswer", "V2-OLD-2": "TestProtocolToVersion1",
}

// notMapped are sections whose tests are not in heldBy yet.
var notMapped = []string{}

var requirementID = regexp.MustCompile(`\bV[12]-[A-Z]+-[0-9]+\b`)

// TestProtocolRequirements compares docs/protocol.md with heldBy, and heldBy with the tests of the repository.
func TestProtocolRequirements(t *testing.T) {
	doc, err := os.ReadFile("docs/protocol.md")
	must(t, err)
	defined, exempt := map[string]string{}, map[string]bool{}
	section := ""
	for line := range strings.Lines(string(doc)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "## ") || strings.HasPrefix(line, "### ") {
			section = line
		}
		id := requirementID.FindString(line)
		if !strings.HasPrefix(line, "| "+id+" |") || id == "" {
			continue
		}
		if defined[id] != "" {
			t.Errorf("%s is defined twice", id)
		}
		defined[id] = section
		exempt[id] = slices.Contains(notMapped, section)
	}
	for _, id := range requirementID.FindAllString(string(doc), -1) {
		if defined[id] == "" {
			t.Errorf("the document mentions %s and does not define it", id)
		}
	}
	for id, section := range defined {
		switch {
		case heldBy[id] == "" && !exempt[id]:
			t.Errorf("%s of %q is held by no test", id, section)
		case heldBy[id] != "" && exempt[id]:
			t.Errorf("%s of %q is held by a test, and the section is on the list of those that are not", id, section)
		}
	}
	tests := testFunctions(t)
	for id, names := range heldBy {
		if defined[id] == "" {
			t.Errorf("%s is not in the document", id)
		}
		for name := range strings.FieldsSeq(names) {
			if !tests[name] {
				t.Errorf("%s: there is no test %s", id, name)
			}
		}
	}
}

// TestReadmesLinks checks that every test which README.md, docs/contract.md and docs/protocol.md name is there.
func TestReadmesLinks(t *testing.T) {
	tests := testFunctions(t)
	for _, file := range []string{"README.md", "docs/contract.md", "docs/protocol.md"} {
		doc, err := os.ReadFile(file)
		must(t, err)
		named := regexp.MustCompile("`((Test|Fuzz|Benchmark)[A-Z]\\w+)`").FindAllSubmatch(doc, -1)
		if len(named) == 0 {
			t.Errorf("%s names no test", file)
		}
		for _, n := range named {
			if !tests[string(n[1])] {
				t.Errorf("%s names %s, which is not there", file, n[1])
			}
		}
	}
}

// testFunctions returns the names of all tests of the repository.
func testFunctions(t *testing.T) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	must(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "node_modules" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != ".") {
			if err == nil {
				err = fs.SkipDir
			}
			return err
		}
		if d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && regexp.MustCompile("^(Test|Fuzz|Benchmark)").MatchString(f.Name.Name) {
				tests[f.Name.Name] = true
			}
		}
		return nil
	}))
	return tests
}

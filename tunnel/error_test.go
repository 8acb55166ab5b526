package tunnel

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAnErrorSurvivesItsHeader(t *testing.T) {
	t.Parallel()
	for _, e := range []*Error{
		{Stage: StageNoRoute},
		{Stage: StageAddressRefused, Detail: `10.0.0.1 is not in "allowed_ips"; see the docs`},
		{Stage: StageUpstreamTimeout, Detail: "größer", RetryAfter: 3 * time.Second},
		{Stage: "a_newer_stage", Detail: "x"},
	} {
		h := http.Header{}
		e.SetHeader(h)
		if got := ErrorFromHeader(h); !cmp.Equal(got, e) {
			t.Errorf("%q: %s", h.Get(ErrorHeader), cmp.Diff(e, got))
		}
		if v := h.Get(ErrorHeader); strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q is no header", v)
		}
	}
	if e := ErrorFromHeader(http.Header{}); e != nil {
		t.Errorf("without the header: %v", e)
	}
}

func TestWhatAnotherMachineSaysIsOneBoundedLine(t *testing.T) {
	t.Parallel()
	h := http.Header{}
	(&Error{Stage: StageNoRoute, Detail: "a\r\nSet-Cookie: b\x00\u2028" + strings.Repeat("ü", 1000)}).SetHeader(h)
	e := ErrorFromHeader(h)
	if strings.ContainsAny(e.Detail, "\r\n\x00\u2028") || len(e.Detail) > detailMax+len("…") {
		t.Errorf("the detail is %q", e.Detail)
	}
	for _, v := range []string{"NO ROUTE", "<script>", strings.Repeat("a", 41), ";", `x"y`} {
		if e := ErrorFromHeader(http.Header{ErrorHeader: {v}}); e.Stage != StageProtocol {
			t.Errorf("%q gives stage %q", v, e.Stage)
		}
	}
}

// TestStatusesAreNeverThoseThatEndASession is the law of what a tunnel may answer.
func TestStatusesAreNeverThoseThatEndASession(t *testing.T) {
	t.Parallel()
	for stage, want := range map[Stage]int{
		StageNotActive: 503, StageEdgeUnreachable: 503, StageDraining: 503, StageOverloaded: 503, StageNoConnector: 503,
		StageConnectorLost: 502, StageInnerTLS: 502, StageNoRoute: 502, StageRequestRefused: 502, StageAddressRefused: 502,
		StageUpstreamRefused: 502, StageUpstreamStatus: 502, StageUpstreamProtocol: 502, StageProtocol: 502, "unknown": 502,
		StageUpstreamTimeout: 504, StageTimeout: 504,
	} {
		if got := (&Error{Stage: stage}).HTTPStatus(); got != want {
			t.Errorf("%s: %d, want %d", stage, got, want)
		}
	}
}

func TestARefusalIsTheErrorWithoutItsCause(t *testing.T) {
	t.Parallel()
	e := &Error{Stage: StageNoConnector, Detail: "nobody", RetryAfter: time.Second, Err: errors.New("of this machine"), Host: "docs.x"}
	b, err := AppendMessage(nil, FrameRefused, NewRefusal(e))
	if err != nil || strings.Contains(string(b), "machine") {
		t.Fatalf("%q, %v", b, err)
	}
	_, payload, err := ReadFrame(strings.NewReader(string(b)), MessageMax)
	if err != nil {
		t.Fatal(err)
	}
	want := &Error{Stage: StageNoConnector, Detail: "nobody", RetryAfter: time.Second}
	if got := ParseRefusal(payload); *got != *want {
		t.Error(cmp.Diff(want, got))
	}
	if r := NewRefusal(io.EOF); r.Stage != StageProtocol || r.Detail != "" {
		t.Errorf("of another error: %+v", r)
	}
}

package tunnel

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const account = "00000000000000000000000000000000"

func TestToken(t *testing.T) {
	t.Parallel()
	a, b := NewToken(account, "tnl_1"), NewToken(account, "tnl_1")
	if a.Text() == b.Text() || a.ID() == b.ID() {
		t.Error("two tokens are the same")
	}
	if !strings.HasPrefix(a.Text(), "eyJ") || strings.ContainsAny(a.Text(), "\n ") {
		t.Errorf("text %q", a.Text())
	}
	got, err := ParseToken("\n " + a.Text() + "\r\n")
	if err != nil || got != a || got.ID() != a.ID() {
		t.Errorf("parsed %v, %v", got, err)
	}
	if !got.IsFor("tnl_1") || got.IsFor("tnl_2") || (Token{}).IsFor("tnl_1") {
		t.Error("a token is for its own tunnel only")
	}
	if id := string(a.ID()); len(id) != len("ttkn_")+64 || strings.ToLower(id) != id {
		t.Errorf("id %s", id)
	}
	// The form others know: a, s and t, and a UUID.
	data, err := base64.StdEncoding.DecodeString(a.Text())
	if err != nil {
		t.Fatal(err)
	}
	var body map[string]string
	if err := json.Unmarshal(data, &body); err != nil {
		t.Fatal(err)
	}
	if len(body) != 3 || body["a"] != account || len(body["s"]) != 44 || len(body["t"]) != 36 || body["t"][14] != '8' {
		t.Errorf("body %s", data)
	}
}

func TestTokenIsShownNowhere(t *testing.T) {
	t.Parallel()
	a := NewToken(account, "tnl_1")
	secret := a.Text()[20:40]
	inJSON, err := json.Marshal(struct{ T Token }{a})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", a)
	for _, shown := range []string{a.String(), fmt.Sprint(a), fmt.Sprintf("%v %+v %#v %s %q", a, a, a, a, a), string(inJSON), log.String(), Token{}.String()} {
		if strings.Contains(shown, secret) {
			t.Errorf("shows the token: %s", shown)
		}
	}
}

func TestParseToken(t *testing.T) {
	t.Parallel()
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	const secret = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	good := `{"a":"x","s":"` + secret + `","t":"y"}`
	if _, err := ParseToken(encode(good)); err != nil {
		t.Errorf("refused: %v", err)
	}
	for name, text := range map[string]string{
		"empty":             "",
		"an API key":        "sk-ant-api03-abcdef",
		"not base64":        "eyJ!",
		"URL base64":        base64.URLEncoding.EncodeToString([]byte(`{"a":"???>>>","s":"` + secret + `","t":"y"}`)),
		"no padding":        strings.TrimRight(encode(good+" "), "="),
		"line break inside": encode(good)[:8] + "\n" + encode(good)[8:],
		"not JSON":          encode("hello"),
		"null":              encode("null"),
		"no account":        encode(`{"a":"","s":"` + secret + `","t":"y"}`),
		"no tunnel":         encode(`{"a":"x","s":"` + secret + `"}`),
		"short secret":      encode(`{"a":"x","s":"AAAA","t":"y"}`),
		"more fields":       encode(`{"a":"x","s":"` + secret + `","t":"y","e":"z"}`),
		"a field twice":     encode(`{"a":"x","a":"x","s":"` + secret + `","t":"y"}`),
		"another case":      encode(`{"A":"x","s":"` + secret + `","t":"y"}`),
		"another order":     encode(`{"s":"` + secret + `","a":"x","t":"y"}`),
		"white space":       encode(strings.ReplaceAll(good, ",", ", ")),
		"two values":        encode(good + good),
		"too long":          encode(`{"a":"` + strings.Repeat("x", 500) + `","s":"` + secret + `","t":"y"}`),
	} {
		tok, err := ParseToken(text)
		if err == nil || !tok.IsZero() {
			t.Errorf("%s: accepted", name)
			continue
		}
		if len(text) > 8 && strings.Contains(err.Error(), text) {
			t.Errorf("%s: the error shows what was given", name)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken(account, "tnl_1").Text())
	f.Add(base64.StdEncoding.EncodeToString([]byte(`{"a":"<&>","s":"MDEyMzQ1Njc4OWFiY2RlZg==","t":"\u2028"}`)))
	f.Add("eyJ9")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := ParseToken(text)
		if err != nil {
			return
		}
		if tok.Text() != strings.TrimSpace(text) {
			t.Fatalf("%q became %q", text, tok.Text())
		}
		if again, err := ParseToken(tok.Text()); err != nil || again != tok {
			t.Fatalf("parsed again: %v", err)
		}
	})
}

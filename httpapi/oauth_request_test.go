package httpapi

import (
	"strings"
	"testing"
)

// What a request of an authorization carries for the token endpoint is not on record.
func TestOAuthRequestIsRecordedWithoutSecrets(t *testing.T) {
	t.Parallel()
	rt := &route{op: "vaults.credentials.oauth_request"}
	got := string(withoutSecrets(rt, []byte(`{"method":"POST","url":"https://docs.x.test/token","Authorization":"Basic hidden","request_body":"code=hidden"}`)))
	if strings.Contains(got, "hidden") || !strings.Contains(got, "docs.x.test") {
		t.Errorf("on record is %s", got)
	}
}

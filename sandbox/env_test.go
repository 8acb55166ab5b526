package sandbox

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMergeEnv(t *testing.T) {
	t.Parallel()
	got := MergeEnv([]string{"PATH=/bin", "HOME=/w"}, []string{"PATH=/opt/bin:/bin", "A=1"})
	if diff := cmp.Diff([]string{"HOME=/w", "PATH=/opt/bin:/bin", "A=1"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestEnvInAnImage(t *testing.T) {
	t.Parallel()
	const path = "PATH=" + DefaultPath
	for name, tt := range map[string]struct{ image, spec, want []string }{
		"no image's":               {nil, []string{path, "A=1"}, []string{path, "A=1"}},
		"variables of its own":     {[]string{"B=2", "HOME=/root"}, []string{path, "HOME=/w"}, []string{"B=2", path, "HOME=/w"}},
		"programs of its own":      {[]string{"PATH=/opt/go/bin:/usr/bin"}, []string{path}, []string{"PATH=/opt/go/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin"}},
		"the work folder's":        {[]string{"PATH=.::bin:/x"}, []string{path}, []string{"PATH=/x:" + DefaultPath}},
		"the operator knows more":  {[]string{"PATH=/opt/go/bin"}, []string{"PATH=/only"}, []string{"PATH=/only"}},
		"nobody but the image has": {[]string{"PATH=/opt/go/bin"}, nil, []string{"PATH=/opt/go/bin"}},
	} {
		if diff := cmp.Diff(tt.want, Spec{Env: tt.spec}.EnvIn(tt.image)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

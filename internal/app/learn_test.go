package app

import (
	"slices"
	"testing"
)

func TestWhatIsSecretOfAValueIsKnown(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, value string
		want        []string
	}{
		{"provider/house", `{"kind":"openai","key":"the-key"}`, []string{"the-key", ""}},
		{"git/t/r", `{"kind":"basic","username":"ann","secret":"the-password"}`, []string{"", "the-password"}},
		{"expose/t/r/CLOUD", `{"type":"service_account","private_key":"abc"}`, []string{`{"type":"service_account","private_key":"abc"}`}},
		{"git/t/r", "ann:of-an-earlier-version", []string{"ann:of-an-earlier-version"}},
		{"hosts/t/r", "h ssh-ed25519 AAAA", nil},
	} {
		if got := secretsIn(c.name, []byte(c.value)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

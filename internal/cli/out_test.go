package cli

import (
	"encoding/json"
	"testing"

	"gastown/internal/api"
)

func TestJSONCommandsNoTerminal(t *testing.T) {
	t.Parallel()
	in := "é€ 界\n\t\x1b[2J \x7f \u009b31m \u0085 \u202e \u2066 \u2069 end\\u0041"
	b, err := encodeJSON(map[string]string{"text": in}, "  ")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range string(b) {
		if commands(r) {
			t.Errorf("%q has %U", b, r)
		}
	}
	var out map[string]string
	if err := json.Unmarshal(b, &out); err != nil || out["text"] != in {
		t.Errorf("%q came back as %q, %v", in, out["text"], err)
	}
}

func TestATokenIsForOneServer(t *testing.T) {
	t.Parallel()
	rig := func(url string, credential bool) api.ImportedRig {
		return api.ImportedRig{URL: url, Credential: credential}
	}
	for _, tt := range []struct {
		rigs []api.ImportedRig
		want bool
	}{
		{nil, false},
		{[]api.ImportedRig{rig("https://a.example/x", true), rig("https://a.example/y", true), rig("https://b.example/z", false)}, false},
		{[]api.ImportedRig{rig("https://a.example/x", true), rig("https://b.example/y", true)}, true},
		{[]api.ImportedRig{rig("https://a.example/x", true), rig("http://a.example/x", true)}, true},
		{[]api.ImportedRig{rig("https://a.example/x", true), rig("git@b.example:y", true)}, true},
	} {
		if got := severalServers(tt.rigs); got != tt.want {
			t.Errorf("%v: %v", tt.rigs, got)
		}
	}
}

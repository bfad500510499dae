package process

import (
	"testing"

	"gastown/internal/sandbox"
)

func FuzzMarker(f *testing.F) {
	d := &Driver{hash: "0123456789abcdef"}
	f.Add([]byte("A=b\x00GASTOWN_SANDBOX=0123456789abcdef:alpha:12\x00"))
	f.Add([]byte("GASTOWN_SANDBOX=0123456789abcdef:../x:12"))
	f.Add([]byte("GASTOWN_SANDBOX=0123456789abcdef:alpha:-1\x00"))
	f.Add([]byte("GASTOWN_SANDBOX=ffff:alpha:1"))
	f.Fuzz(func(t *testing.T, environ []byte) {
		town, generation, ok := d.markerIn(environ)
		if ok && (!sandbox.ValidTown(town) || generation < 1) {
			t.Errorf("accepted %q %d", town, generation)
		}
		if !ok && (town != "" || generation != 0) {
			t.Errorf("refused, but gives %q %d", town, generation)
		}
	})
}

func TestMarkersAreReadBack(t *testing.T) {
	t.Parallel()
	d := &Driver{hash: "0123456789abcdef"}
	environ := []byte("A=b\x00" + sandbox.EnvSandbox + "=" + d.marker("my-town", 42) + "\x00C=d\x00")
	if town, generation, ok := d.markerIn(environ); town != "my-town" || generation != 42 || !ok {
		t.Errorf("read back %q %d %v", town, generation, ok)
	}
}

func TestUserinfoInAURLIsSeen(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]bool{
		"https://modules.example.org,direct":       false,
		"https://a.example,https://u:p@b.example/": true,
		"http://u@host":        true,
		"https://host/path@v1": false,
		"-mod=mod":             false,
		"":                     false,
	} {
		if got := hasUserinfo(v); got != want {
			t.Errorf("hasUserinfo(%q) is %v", v, got)
		}
	}
}

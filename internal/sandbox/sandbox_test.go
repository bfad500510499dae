package sandbox

import (
	"strings"
	"testing"
)

func TestATownNameIsASlugThatCanBeAPathAndALabel(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"a": true, "my-town_2": true, "0": true, strings.Repeat("a", 63): true,
		"": false, strings.Repeat("a", 64): false, "-a": false, "_a": false, "A": false,
		".": false, "..": false, ".trash": false, "a/b": false, "a b": false, "a:b": false, "a\x00": false, "ä": false,
	} {
		if got := ValidTown(name); got != want {
			t.Errorf("ValidTown(%q) is %v", name, got)
		}
	}
}

package process

import "testing"

func TestUsersAreMappedToThemselves(t *testing.T) {
	t.Parallel()
	got, err := identity("         0     100000      65536\n     65536 0 1\n")
	if want := "0 0 65536\n65536 65536 1\n"; err != nil || got != want {
		t.Errorf("identity is %q, %v; want %q", got, err, want)
	}
	if got, err := identity("a b c\n"); err == nil {
		t.Errorf("a map that is none gives %q", got)
	}
}

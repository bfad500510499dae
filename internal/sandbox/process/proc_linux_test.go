package process

import "testing"

func FuzzStat(f *testing.F) {
	f.Add([]byte("77 (a) b) (c) S 1 77 70 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5521 1 1\n"))
	f.Add([]byte("77 (x) Z 1"))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if p, err := parseStat(raw); err == nil && p.start == "" {
			t.Errorf("%q gives a process without a start time", raw)
		}
	})
}

func TestANameWithParenthesesDoesNotShiftTheFields(t *testing.T) {
	t.Parallel()
	p, err := parseStat([]byte("77 (a) Z 5 (b) S 3 77 70 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5521 1 1\n"))
	want := proc{pid: 77, ppid: 3, sid: 70, start: "5521"}
	if err != nil || p != want {
		t.Errorf("parsed %+v, %v; want %+v", p, err, want)
	}
}

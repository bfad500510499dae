package runner

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheLogOfARunnerIsBoundedAndKeepsItsNewestLines(t *testing.T) {
	t.Parallel()
	for name, flag := range map[string]int{"as a driver opens it": os.O_APPEND, "without appending": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "runner.log")
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|flag, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			l, ok := CapLog(f).(*cappedLog)
			if !ok {
				t.Fatal("the file is not capped")
			}
			l.limit, l.keep = 1000, 400
			line := func(i int) string { return fmt.Sprintf("line %d of the log\n", i) }
			last := 0
			for ; last < 500; last++ {
				if n, err := io.WriteString(l, line(last)); err != nil || n != len(line(last)) {
					t.Fatal(n, err)
				}
				if st, err := os.Stat(path); err != nil || st.Size() > 1000 {
					t.Fatalf("after line %d: %d bytes, %v", last, st.Size(), err)
				}
			}
			got, err := os.ReadFile(path)
			if err != nil || bytes.IndexByte(got, 0) >= 0 {
				t.Fatalf("%q, %v", got, err)
			}
			head, rest, _ := strings.Cut(string(got), "\n")
			if !strings.HasPrefix(head, "the log became too long") {
				t.Errorf("the loss is not told: %q", head)
			}
			want := ""
			for i := last - strings.Count(rest, "\n"); i < last; i++ {
				want += line(i)
			}
			if rest != want || len(rest) < 300 {
				t.Errorf("the log holds %q", rest)
			}
		})
	}
}

func TestALogOfAPersonIsLeftAlone(t *testing.T) {
	t.Parallel()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "my.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, out := range []io.Writer{f, w, io.Discard} {
		if got := CapLog(out); got != out {
			t.Errorf("%T became %T", out, got)
		}
	}
}

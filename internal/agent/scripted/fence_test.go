package scripted

import (
	"strings"
	"testing"
)

func TestBlocks(t *testing.T) {
	t.Parallel()
	body := "Intro\n\n```sh\necho plain\n```\n" +
		"```go\n```` sh\nnot ours\n```\n" +
		"   ````sh  attempt=2   end=no_change nudge=0\n```\ninner\n```\n````\n" +
		"    ```sh\n" + // indented by four: not a fence
		"~~~sh\nnot a fence\n~~~\n" +
		"``` sh end=none\r\necho crlf\r\n```\r\n" +
		"```sh`x\n" + // a backtick in the info string: not a fence
		"```sh"
	if _, err := Blocks(body); err == nil || !strings.Contains(err.Error(), "never ends") {
		t.Errorf("the last block never ends: %v", err)
	}
	got, err := Blocks(strings.TrimSuffix(body, "```sh"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Block{
		{Script: "echo plain\n", Nudge: -1, End: EndDone, Line: 3},
		{Script: "```\ninner\n```\n", Attempt: 2, Nudge: 0, End: EndNoChange, Line: 10},
		{Script: "echo crlf\r\n", Nudge: -1, End: EndNone, Line: 19},
	}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("block %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
}

func TestBadBlocksSayWhere(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ body, want string }{
		"unterminated":       {"a\n```sh\necho\n", "line 2: the block that starts here never ends: put a line of ```"},
		"shorter close":      {"````sh\necho\n```\n", "put a line of ````"},
		"other language too": {"```go\n", "line 1"},
		"unknown attribute":  {"```sh when=now\n```\n", `unknown attribute "when"`},
		"no value":           {"```sh end\n```\n", `"end" is not key=value`},
		"unknown end":        {"```sh end=win\n```\n", "end=win: there are done"},
		"attempt 0":          {"```sh attempt=0\n```\n", "attempt=0"},
		"attempt as a word":  {"```sh attempt=first\n```\n", "attempt=first"},
		"negative nudge":     {"```sh nudge=-1\n```\n", "nudge=-1"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Blocks(c.body); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	plain, second := Block{Script: "plain", Nudge: -1}, Block{Script: "second", Nudge: -1, Attempt: 2}
	nudged, both := Block{Script: "nudged", Nudge: 1}, Block{Script: "both", Nudge: 1, Attempt: 2}
	again := Block{Script: "again", Nudge: -1}
	for name, c := range map[string]struct {
		blocks         []Block
		attempt, nudge int
		want           string
	}{
		"none at all":               {nil, 1, 0, ""},
		"the first plain one":       {[]Block{plain, again}, 1, 0, "plain"},
		"the attempt's own":         {[]Block{plain, second}, 2, 0, "second"},
		"the first if nothing fits": {[]Block{nudged, second}, 1, 0, "second"},
		"plain for other attempts":  {[]Block{second, plain}, 3, 0, "plain"},
		"the nudge's own":           {[]Block{plain, second, nudged}, 2, 1, "nudged"},
		"the most exact":            {[]Block{nudged, both}, 2, 1, "both"},
		"never another nudge's":     {[]Block{nudged}, 1, 2, ""},
		"a nudge repeats the plain": {[]Block{plain}, 1, 4, "plain"},
	} {
		t.Run(name, func(t *testing.T) {
			b, ok := Choose(c.blocks, c.attempt, c.nudge)
			if ok != (c.want != "") || b.Script != c.want {
				t.Errorf("got %q, %v", b.Script, ok)
			}
		})
	}
}

func FuzzBlocks(f *testing.F) {
	f.Add("```sh\necho\n```\n")
	f.Add("````sh attempt=2 nudge=1 end=hang\n```\n````\r\n")
	f.Add("~~~\n```\n```sh end=\xff\n")
	f.Fuzz(func(t *testing.T, body string) {
		blocks, err := Blocks(body)
		if err != nil {
			if blocks != nil || !strings.HasPrefix(err.Error(), "line ") {
				t.Fatalf("%v with %d blocks", err, len(blocks))
			}
			return
		}
		lines := strings.Count(body, "\n") + 1
		for _, b := range blocks {
			if b.Line < 1 || b.Line > lines || b.End == "" || b.Attempt < 0 || b.Nudge < -1 || !strings.Contains(body, b.Script) {
				t.Fatalf("%+v", b)
			}
		}
		Choose(blocks, 1, 0)
		// What follows a text without open blocks can't change what was found in it.
		more, err := Blocks(strings.TrimRight(body, "\n") + "\n\n```sh\nx\n```\n")
		if err == nil && len(more) != len(blocks)+1 {
			t.Fatalf("%d blocks, then %d", len(blocks), len(more))
		}
	})
}

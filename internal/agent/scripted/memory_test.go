package scripted

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/acp-go-sdk"
)

func TestASessionIsKeptWholeAndBounded(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	if err := (memory{Turns: 3, Said: strings.Repeat("é", maxMemory)}).remember("scripted-A"); err != nil {
		t.Fatal(err)
	}
	m, err := recall("scripted-A")
	if err != nil || m.Turns != 3 || len(m.Said) > maxMemory || !strings.HasSuffix(m.Said, "é") {
		t.Fatalf("%d turns, %d bytes, %v", m.Turns, len(m.Said), err)
	}
	for name, id := range map[string]acp.SessionId{"unknown": "scripted-B", "no id of ours": "../scripted-A", "empty": ""} {
		if _, err := recall(id); err == nil {
			t.Errorf("a session was loaded that is %s", name)
		}
	}
	if err := os.WriteFile(memoryPath("scripted-C"), []byte(`{"tur`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := recall("scripted-C"); err == nil {
		t.Error("half a session was loaded")
	}
}

func TestOldSessionsAreForgotten(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	for i := range maxSessions + 20 {
		if err := (memory{}).remember(acp.SessionId(fmt.Sprintf("scripted-%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := forgetOld(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Dir(memoryPath("x")))
	if err != nil || len(left) != maxSessions {
		t.Errorf("%d are left, %v", len(left), err)
	}
}

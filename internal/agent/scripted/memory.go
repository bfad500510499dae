package scripted

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coder/acp-go-sdk"
)

const (
	maxMemory   = 64 << 10 // bytes kept of what was said in a session
	maxSessions = 200      // kept on disk; the oldest go first
)

// memory is what outlives the process of a session.
type memory struct {
	Turns int    `json:"turns"` // begun so far
	Said  string `json:"said"`  // the end of what the agent said
}

var sessionRE = regexp.MustCompile(`^scripted-[A-Za-z0-9]{1,64}$`)

// memoryPath is where a session is kept: below XDG_DATA_HOME, else in the home
// directory, which in a sandbox lies on its disk. "" when there is neither.
func memoryPath(id acp.SessionId) string {
	dir := os.Getenv("XDG_DATA_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(dir, "gastown-scripted", string(id)+".json")
}

// recall reads what is known of a session.
func recall(id acp.SessionId) (memory, error) {
	var m memory
	path := memoryPath(id)
	if path == "" || !sessionRE.MatchString(string(id)) {
		return m, errors.New("no such session")
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	return m, err
}

// remember writes a session whole or not at all. A session that can't be kept
// only can't be loaded, so the error is for the log.
func (m memory) remember(id acp.SessionId) error {
	path := memoryPath(id)
	if path == "" {
		return nil
	}
	m.Said = strings.ToValidUTF8(m.Said[max(0, len(m.Said)-maxMemory):], "")
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// forgetOld removes the oldest sessions beyond maxSessions.
func forgetOld() error {
	path := memoryPath("x")
	entries, err := os.ReadDir(filepath.Dir(path))
	if path == "" || errors.Is(err, os.ErrNotExist) || len(entries) <= maxSessions {
		return nil
	}
	if err != nil {
		return err
	}
	age := func(e os.DirEntry) time.Time {
		if st, err := e.Info(); err == nil {
			return st.ModTime()
		}
		return time.Time{} // gone meanwhile
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return age(a).Compare(age(b)) })
	for _, e := range entries[:len(entries)-maxSessions] {
		err = errors.Join(err, os.Remove(filepath.Join(filepath.Dir(path), e.Name())))
	}
	return err
}

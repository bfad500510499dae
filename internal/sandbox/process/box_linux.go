package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// mapUsers gives the process that bubblewrap started as root the same users as
// there are outside, so that its first process can become another one. It has
// power over them in its own namespace only.
func (b *boxBirth) mapUsers() error {
	raw, err := io.ReadAll(io.LimitReader(b.info, 4096))
	if err != nil {
		return err
	}
	var info struct {
		Child int `json:"child-pid"`
	}
	if err := json.Unmarshal(raw, &info); err != nil || info.Child <= 1 {
		return errors.New("it named no process")
	}
	for _, name := range []string{"uid_map", "gid_map"} {
		own, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			return err
		}
		same, err := identity(string(own))
		if err != nil {
			return err
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", info.Child, name), []byte(same), 0); err != nil {
			return err
		}
	}
	_, err = b.block.Write([]byte{1})
	return err
}

// identity turns a map of users into one of the same users to themselves.
func identity(own string) (string, error) {
	var out strings.Builder
	for line := range strings.Lines(own) {
		var in, outer, n uint32
		if _, err := fmt.Sscan(line, &in, &outer, &n); err != nil {
			return "", fmt.Errorf("a map of users can't be read: %w", err)
		}
		fmt.Fprintf(&out, "%d %d %d\n", in, in, n)
	}
	return out.String(), nil
}

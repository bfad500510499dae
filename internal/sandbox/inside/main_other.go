//go:build !linux

package inside

import (
	"errors"
	"io"
	"strings"
)

// Main is the first process of a container, and containers are Linux.
func Main(_ []string, stdout io.Writer) int {
	return sayFailed(stdout, errors.New("sandboxes in containers are Linux only"))
}

func sayFailed(stdout io.Writer, err error) int {
	// Nobody else could be told.
	_, _ = io.WriteString(stdout, Failed+strings.TrimSpace(err.Error())+"\n")
	return 127
}

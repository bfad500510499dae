package server

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/town"
)

// beadCursor sorts as the town sorts its beads: by creation, then id.
func beadCursor(b town.Bead) string { return fmt.Sprintf("%016d.%s", int64(b.CreatedAt), b.ID) }

// urgencyCursor sorts by urgency first.
func urgencyCursor(b town.Bead) string { return fmt.Sprintf("%d.%s", b.Priority, beadCursor(b)) }

func writeCursor(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func readCursor(s string) (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) > 0 && !strings.Contains(string(b), ".") {
		return "", errs.New(errs.Invalid, "the cursor is not one of this server").WithHint("leave it out to begin at the first page")
	}
	return string(b), nil
}

func has(list []string, s string) bool { return slices.Contains(list, s) }

// printableDiff makes a patch fit for JSON.
func printableDiff(patch []byte) string { return strings.ToValidUTF8(string(patch), "�") }

package hub

import (
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"gastown/internal/errs"
)

// sizeFresh is how long a measured size counts: a push under way can't be seen
// in it anyway.
const sizeFresh = 5 * time.Second

type sized struct {
	bytes int64
	at    time.Time
}

// Size returns how many bytes the repositories of a town take on disk. It may
// be a few seconds old.
func (h *Hub) Size(town string) (int64, error) {
	if !validSlug(town) {
		return 0, errs.New(errs.Invalid, "%.120q is not the name of a town", town)
	}
	h.mu.Lock()
	s, ok := h.sizes[town]
	h.mu.Unlock()
	now := h.now()
	if age := now.Sub(s.at); ok && age >= 0 && age < sizeFresh {
		return s.bytes, nil
	}
	var total int64
	err := filepath.WalkDir(filepath.Join(h.root, town), func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // packed or removed while we look
		}
		if err != nil {
			return err
		}
		if st, err := d.Info(); err == nil && st.Mode().IsRegular() {
			total += st.Size()
		}
		return nil
	})
	if err != nil {
		return 0, errs.Wrap(errs.Internal, err, "measuring the repositories of town %s", town)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, s := range h.sizes { // only what is in use stays
		if now.Sub(s.at) >= sizeFresh {
			delete(h.sizes, name)
		}
	}
	h.sizes[town] = sized{total, now}
	return total, nil
}

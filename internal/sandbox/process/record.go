package process

import (
	"strconv"

	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

func keyOf(r record.Record) key { return key{r.Town, r.Generation} }

func refOf(r record.Record) sandbox.Ref {
	ref := sandbox.Ref{Driver: driverName, Town: r.Town, Generation: r.Generation}
	if r.PID > 0 {
		ref.ID = strconv.Itoa(r.PID)
	}
	return ref
}

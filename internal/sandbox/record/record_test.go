package record_test

import (
	"testing"

	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"town":"alpha","generation":3,"phase":"running","boot":"b","pid":77,"start":"123"}`))
	f.Add([]byte(`{"town":"alpha","generation":3,"phase":"running","pid":1,"start":"1"}`))
	f.Add([]byte(`{"town":"../x","generation":3,"phase":"ended"}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := record.Parse(raw)
		if err != nil {
			return
		}
		if !sandbox.ValidTown(r.Town) || r.Generation < 1 || r.PID < 0 || r.PID == 1 || (r.Phase == record.Running && r.PID == 0 && r.Container == "") {
			t.Errorf("accepted %+v", r)
		}
	})
}

package town

import (
	"fmt"
	"testing"
)

// bigTown has n open beads on one rig, of which the usual four are at work.
func bigTown(b testing.TB, n int) *driver {
	d := newDriver(b)
	d.rig()
	for i := range n {
		in := CreateBead{By: "ann", ID: fmt.Sprintf("web-%05d", i), Rig: "web", Title: fmt.Sprintf("change number %d", i), Priority: i % 5,
			Body: "Make the function in file " + fmt.Sprint(i) + " do what its comment says, and add a test for the edge cases."}
		if err := d.town.Handle(d.now, in); err != nil {
			b.Fatal(err)
		}
	}
	for {
		effs := d.town.Claim(d.now, "boot")
		if len(effs) == 0 {
			break
		}
		for _, e := range effs {
			if err := d.town.Handle(d.now, EffectDone{Key: e.Key, ID: e.ID, Result: d.result(e)}); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := d.town.Handle(d.now, Hello{Generation: d.gen(), Stream: d.stream}); err != nil {
		b.Fatal(err)
	}
	d.save()
	return d
}

// BenchmarkSettle measures one change to a town of 10,000 open beads, with the
// effects, next wake, columns and changed rows that a commit needs.
func BenchmarkSettle(b *testing.B) {
	d := bigTown(b, 10_000)
	title := [2]string{"one", "two"}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if err := d.town.Handle(d.now, EditBead{By: "ann", Bead: fmt.Sprintf("web-%05d", i%10_000), Title: &title[i/10_000%2]}); err != nil {
			b.Fatal(err)
		}
		d.town.Claim(d.now, "boot")
		d.town.Columns(d.now)
		d.town.Changes()
		d.town.Entries()
	}
}

// BenchmarkDecode measures making a town of 10,000 open beads from its rows.
func BenchmarkDecode(b *testing.B) {
	d := bigTown(b, 10_000)
	rows := d.town.Rows()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := Decode("tn1", rows, nil); err != nil {
			b.Fatal(err)
		}
	}
}

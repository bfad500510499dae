package town

import "testing"

func TestARunIsToldWhetherItMayShareAProcess(t *testing.T) {
	t.Parallel()
	for _, own := range []bool{false, true} {
		d := newDriver(t)
		d.rig()
		if own {
			d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"process_per_run": "true"}})
		}
		d.bead("web-aaaaa")
		d.hello()
		if got := d.town.Desired().Runs[0].OwnProcess; got != own {
			t.Errorf("process_per_run %v: the run is told %v", own, got)
		}
	}
}

package town

import (
	"time"

	"gastown/internal/errs"
)

// Handle takes one input. It validates before it changes anything: after an
// error the town is as it was. After the change it settles, so that every rule
// that can act has acted. now must not be zero.
//
// Errors: Invalid (can never work), NotFound, Conflict (not in this state),
// Gone (a message of an old generation or epoch; the sender should stop).
func (t *Town) Handle(at time.Time, in Input) error {
	now := At(at)
	if t.info.Mode == ModeDeleting {
		if err := t.whileDeleting(in); err != nil {
			return err
		}
	}
	if t.info.Mode == ModeImporting {
		if err := t.whileImporting(in); err != nil {
			return err
		}
	}
	if err := t.apply(now, in); err != nil {
		return err
	}
	t.settle(now)
	return nil
}

// whileDeleting lets only what ends a town pass.
func (t *Town) whileDeleting(in Input) error {
	switch in.(type) {
	case Reports, GatesDone, Metered, TakeBlock, Limited, ProviderWorks, SandboxExited, EffectDone, Unheard, SlotFree, Restored, Tick, DeleteTown, Retry, DropRow, Mend, Acknowledge:
		return nil
	case Hello, Verdict, Refused, Exchange:
		return errs.New(errs.Gone, "town %s is being deleted", t.info.Name)
	}
	return errs.New(errs.Conflict, "town %s is being deleted", t.info.Name)
}

func (t *Town) apply(now Time, in Input) error {
	switch in := in.(type) {
	case CreateBead:
		return t.createBead(now, in)
	case CreateBeads:
		return t.createBeads(now, in)
	case SlingBead:
		return t.slingBead(now, in)
	case EditBead:
		return t.editBead(now, in)
	case DependBead:
		return t.dependBead(now, in)
	case CloseBead:
		return t.closeByPerson(now, in)
	case CancelBead:
		return t.cancelBead(now, in)
	case ReopenBead:
		return t.reopenBead(now, in)
	case NudgeBead:
		return t.nudgeBead(now, in)
	case Retry:
		return t.retry(now, in)
	case Mend:
		return t.mendTown(now, in)
	case DropRow:
		return t.dropRow(now, in)
	case Acknowledge:
		return t.acknowledge(now, in)
	case AddRig:
		return t.addRig(now, in)
	case SetRig:
		return t.setRig(now, in)
	case DropRig:
		return t.dropRig(now, in)
	case SetTown:
		return t.setTown(now, in)
	case Pause:
		return t.pause(now, in)
	case Resume:
		return t.resume(now, in)
	case RefreshToken:
		return t.refreshToken(now, in)
	case DeleteTown:
		return t.deleteTown(now, in)
	case ImportPart:
		return t.importPart(now, in)
	case FinishImport:
		return t.finishImport(now, in)
	case CloneRig:
		return t.cloneRig(now, in)
	}
	return t.applyMessage(now, in)
}

func (t *Town) applyMessage(now Time, in Input) error {
	switch in := in.(type) {
	case Hello:
		return t.hello(now, in)
	case Reports:
		return t.reports(now, in)
	case Verdict:
		return t.verdict(now, in)
	case Refused:
		return t.refused(now, in)
	case GatesDone:
		return t.gatesDone(now, in)
	case Exchange:
		return t.exchange(now, in)
	case Metered:
		return t.metered(now, in)
	case TakeBlock:
		return t.takeBlock(now, in)
	case Limited:
		return t.limited(now, in)
	case ProviderWorks:
		return t.worksAgain(now, in)
	case SandboxExited:
		t.sandboxExited(now, in)
		return nil
	case EffectDone:
		return t.effectDone(now, in)
	case Unheard:
		t.unheard(now)
		return nil
	case SlotFree:
		t.askAgain(now)
		return nil
	case Restored:
		t.restored(now, in)
		return nil
	case Tick:
		return nil
	}
	return errs.New(errs.Internal, "unknown input %T", in)
}

// person checks the name of who asks.
func person(by string) (string, error) {
	if by == "" {
		by = "someone"
	}
	return by, cleanLine("name of who asks", by, 200)
}

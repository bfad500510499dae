package agent

import "testing"

func TestWhatComesLateOfAClosedSessionIsNobodys(t *testing.T) {
	t.Parallel()
	first := &Agent{session: "one"}
	m := newMembers(first)
	m.opened(first)
	second := &Agent{session: "two"}
	if !m.add(second) || m.of("two", false) != second || m.of("one", false) != first {
		t.Fatal("the second session is not being opened")
	}
	if m.leave(first) {
		t.Fatal("it was not the last")
	}
	if got := m.of("one", false); got != nil {
		t.Errorf("a message of a closed session goes to %q", got.session)
	}
	m.opened(second)
	back := &Agent{session: "one", spec: Spec{LoadSession: "one"}}
	if !m.add(back) || m.of("one", false) != back {
		t.Error("a session that comes back does not hear its history")
	}
}

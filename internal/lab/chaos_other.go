//go:build !linux

package lab

import "gastown/internal/errs"

func chaosPossible() error {
	return errs.New(errs.Invalid, "chaos needs Linux: it finds runners and agents by /proc").WithHint("gastown-lab sim works everywhere")
}

func belongs(int, string) bool { return false }

func agentsOf(int) []int { return nil }

func leftovers(string) []int { return nil }

func endProcesses(string) error { return nil }

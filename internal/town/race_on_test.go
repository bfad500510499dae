//go:build race

package town

// raceOn says that the race detector runs, which makes everything ten times slower.
const raceOn = true

//go:build !race

package town

// raceOn says that the race detector runs.
const raceOn = false

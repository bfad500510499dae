package hall_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain fixes the seed of the properties, so that a run can be repeated;
// -rapid.seed=N chooses another one.
func TestMain(m *testing.M) {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "rapid.seed" })
	if !chosen {
		if err := flag.Set("rapid.seed", "20260301"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

package cli

import (
	"strings"

	"gastown/internal/errs"
)

// exposed reads the values that flags name, as NAME, NAME=@FILE or NAME=-. A value
// itself is refused: what is on a command line everybody on the machine can read.
func (a *invocation) exposed(flags []string) (map[string]string, error) {
	if len(flags) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, f := range flags {
		name, from, given := strings.Cut(f, "=")
		if _, twice := out[name]; twice {
			return nil, errs.New(errs.Invalid, "--expose %s is given twice", short40(name))
		}
		var err error
		switch {
		case !given:
			if out[name] = a.env.Getenv(name); out[name] == "" {
				err = errs.New(errs.Invalid, "the environment variable %s is empty or not set", short40(name)).
					WithHint("set it for this command, or give --expose NAME=@FILE or --expose NAME=- for stdin")
			}
		case from == "-":
			out[name], err = a.secretFile("value of "+short40(name), "-")
		case strings.HasPrefix(from, "@"):
			out[name], err = a.secretFile("value of "+short40(name), from[1:])
		default:
			err = errs.New(errs.Invalid, "--expose %s= takes no value on the command line, where others can read it", short40(name)).
				WithHint("give --expose NAME=@FILE, --expose NAME=- for stdin, or --expose NAME with the variable set")
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

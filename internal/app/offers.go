package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/agent"
	"gastown/internal/gateway"
	"gastown/internal/town"
)

const (
	// offersEach is how often the server looks whether an agent was installed, or
	// the image of containers is another one: nobody tells it.
	offersEach = 10 * time.Second
	// placeFor is how long a driver may take to say what its sandboxes bring.
	placeFor = 5 * time.Second
)

// placer is a driver that knows what its sandboxes bring along.
type placer interface {
	// Place names it: another name means that other programs may be there.
	Place(ctx context.Context) (string, error)
}

// offers knows what the server has for agents to work with.
type offers struct {
	presets   agent.Presets
	providers *gateway.Providers
	driver    string
	walls     []string // what sandboxes see of this machine, in words of the configuration
	place     any      // the driver; may be a placer
	log       *slog.Logger

	current atomic.Pointer[town.Offers]
	looking sync.Mutex // held while looking; guards the fields below
	untold  bool       // towns were not told of the latest change
	cancel  context.CancelFunc
	done    chan struct{}
}

// now looks at everything. What can't be read now is taken from the last look.
func (o *offers) now(ctx context.Context) *town.Offers {
	out := &town.Offers{Agents: map[string]town.AgentOffer{}, Providers: map[string]town.ProviderOffer{}}
	last := o.current.Load()
	here := sha256.New()
	fmt.Fprintf(here, "%q\n", o.walls) // a hash takes everything
	self, err := os.Executable()
	if err != nil {
		o.log.Warn("this program's path is not known", "err", err)
	}
	for _, name := range o.presets.Names() {
		p := o.presets[name]
		a := town.AgentOffer{NeedsProvider: p.Model.NeedsProvider, Wire: p.Model.Wire, Install: p.InstallHint}
		if o.driver == driverProcess {
			// Such sandboxes have this machine's programs.
			path, err := p.Find(os.Getenv("PATH"), self)
			if err != nil {
				a.Missing = err.Error()
			}
			fmt.Fprintf(here, "%s=%s\n", name, path) // as above
		}
		out.Agents[name] = a
	}
	out.Place = o.driver + " " + hex.EncodeToString(here.Sum(nil)[:8])
	if d, ok := o.place.(placer); ok {
		c, cancel := context.WithTimeout(ctx, placeFor)
		defer cancel()
		if place, err := d.Place(c); err == nil {
			out.Place = o.driver + " " + place
		} else if last != nil {
			out.Place = last.Place
		}
	}
	all, err := o.providers.Survey()
	if err != nil {
		o.log.Warn("the model providers can't be listed", "err", err)
		if last != nil {
			out.Providers = last.Providers
		}
		return out
	}
	for _, p := range all {
		out.Providers[p.Name] = town.ProviderOffer{Kind: p.Kind, Wires: p.Wires, Unusable: p.Unusable}
	}
	return out
}

// lookForOffers looks at what the server has, and lets towns that waited for it
// look again when it is something else.
func (p *parts) lookForOffers(ctx context.Context) {
	o := p.offers
	o.looking.Lock()
	defer o.looking.Unlock()
	found := o.now(ctx)
	if reflect.DeepEqual(found, o.current.Load()) && !o.untold {
		return
	}
	o.current.Store(found)
	err := p.hall.Reoffer(ctx)
	if o.untold = err != nil; o.untold {
		o.log.Warn("the towns that wait for an agent or a provider could not be told of a change", "err", err)
	}
}

// watchOffers looks every offersEach, until stop.
func (p *parts) watchOffers() {
	o := p.offers
	ctx, cancel := context.WithCancel(context.Background())
	o.looking.Lock()
	o.cancel, o.done = cancel, make(chan struct{})
	done := o.done
	o.looking.Unlock()
	go func() {
		defer close(done)
		tick := time.NewTicker(offersEach)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				p.lookForOffers(ctx)
			}
		}
	}()
}

// stop ends the watch and waits for it.
func (o *offers) stop() {
	o.looking.Lock()
	cancel, done := o.cancel, o.done
	o.looking.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

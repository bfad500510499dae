package server

import (
	"context"

	"gastown/internal/api"
	"gastown/internal/doctor"
	"gastown/internal/errs"
)

// Doctor examines the server; see package doctor.
type Doctor interface {
	Examine(ctx context.Context, o doctor.Options) (api.DoctorReport, error)
	Fix(ctx context.Context, o doctor.Options, by string, rows []string) (api.DoctorFixed, error)
	Progress() api.DoctorProgress
}

func (s *Server) registerDoctor() {
	const tag = "server"
	add(s, op{method: "GET", path: "/doctor", id: "doctor", tag: tag, summary: "Examine the server, or one town", errors: []int{404}, long: true,
		detail: "Looks and changes nothing. One examination runs at a time; another waits for it."}, s.examine)
	add(s, op{method: "GET", path: "/doctor/progress", id: "doctor-progress", tag: tag, summary: "Say how far the examination is that runs now"}, s.doctorProgress)
	add(s, op{method: "POST", path: "/doctor/fix", id: "doctor-fix", tag: tag, summary: "Examine, do what is safe, and examine again", errors: []int{404, 409},
		long: true, optional: true, detail: "Quarantined rows are deleted only when they are named. What is done in a town is in its ledger."}, s.doctorFix)
}

func (s *Server) doctor() (Doctor, error) {
	if s.cfg.Doctor == nil {
		return nil, errs.New(errs.Unavailable, "this server has nobody who could examine it")
	}
	return s.cfg.Doctor, nil
}

type examineIn struct {
	Town string `query:"town" doc:"Only this one; its whole state is looked at."`
	Deep bool   `query:"deep" doc:"Load every town, not only those with open work."`
}

func (s *Server) doctorOptions(ctx context.Context, townName string, deep bool) (o doctor.Options, err error) {
	o.Deep = deep
	if townName != "" {
		o.Town, err = s.townID(ctx, townName)
	}
	return o, err
}

func (s *Server) examine(ctx context.Context, in *examineIn) (*body[api.DoctorReport], error) {
	d, err := s.doctor()
	if err != nil {
		return nil, err
	}
	o, err := s.doctorOptions(ctx, in.Town, in.Deep)
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.untilStop(ctx)
	defer cancel()
	rep, err := d.Examine(ctx, o)
	return &body[api.DoctorReport]{Body: rep}, err
}

func (s *Server) doctorProgress(context.Context, *struct{}) (*body[api.DoctorProgress], error) {
	d, err := s.doctor()
	if err != nil {
		return nil, err
	}
	return &body[api.DoctorProgress]{Body: d.Progress()}, nil
}

type doctorFixIn struct {
	Body *api.DoctorFix
}

func (s *Server) doctorFix(ctx context.Context, in *doctorFixIn) (*body[api.DoctorFixed], error) {
	d, err := s.doctor()
	if err != nil {
		return nil, err
	}
	var want api.DoctorFix
	if in.Body != nil {
		want = *in.Body
	}
	o, err := s.doctorOptions(ctx, want.Town, want.Deep)
	if err != nil {
		return nil, err
	}
	who := callOf(ctx).who
	ctx, cancel := s.untilStop(ctx)
	defer cancel()
	done, err := d.Fix(ctx, o, who, want.Rows)
	return &body[api.DoctorFixed]{Body: done}, err
}

package docker

import (
	"context"

	"gastown/internal/errs"
)

// Place names what containers that start now bring along: the id of the image.
func (d *Driver) Place(ctx context.Context) (string, error) {
	img, err := d.api.ImageInspect(ctx, d.cfg.Image)
	if err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "sandbox: look for the image")
	}
	return img.ID, nil
}

package cni

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fastbr/fastbr/ctl"
)

// errFailed is the code of failures that neither the configuration nor the
// environment causes. Codes from 100 on are the plugin's own.
const errFailed = 100

func unsupported(key string, value any) error {
	return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("%s is not supported: %v", key, value), "")
}

func invalid(text string) error {
	return types.NewError(types.ErrInvalidNetworkConfig, text, "")
}

// coded wraps an error of ctl in a CNI error with its code.
func coded(err error) error {
	var e *types.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return err
	case errors.Is(err, ctl.ErrInvalid), errors.Is(err, ctl.ErrNoNetwork), errors.Is(err, ctl.ErrDiffers):
		return types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	case errors.Is(err, ctl.ErrNoPort):
		return types.NewError(types.ErrUnknownContainer, err.Error(), "")
	}
	return types.NewError(errFailed, err.Error(), "")
}

package oncelog

import (
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
)

// Details returns the server's details of an error beside its message; err may be wrapped.
//
// A violation names a field, for example events[1].source, and the limit it breaks. The info has a reason for programs
// and, for a bad event, the positions of its request in the stream and of the event in the request, from 0.
func Details(err error) (violations []*errdetails.BadRequest_FieldViolation, info *errdetails.ErrorInfo) {
	var call interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &call) {
		return nil, nil
	}
	for _, detail := range call.GRPCStatus().Details() {
		switch detail := detail.(type) {
		case *errdetails.BadRequest:
			violations = append(violations, detail.FieldViolations...)
		case *errdetails.ErrorInfo:
			info = detail
		}
	}
	return violations, info
}

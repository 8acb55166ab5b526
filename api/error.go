package api

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// An ErrorType is the machine-readable kind of an [Error].
type ErrorType string

const (
	TypeInvalidRequest  ErrorType = "invalid_request_error"
	TypeAuthentication  ErrorType = "authentication_error"
	TypeBilling         ErrorType = "billing_error"
	TypePermission      ErrorType = "permission_error"
	TypeNotFound        ErrorType = "not_found_error"
	TypeConflict        ErrorType = "conflict_error"
	TypeRequestTooLarge ErrorType = "request_too_large"
	TypeRateLimit       ErrorType = "rate_limit_error"
	TypeAPI             ErrorType = "api_error"
	TypeTimeout         ErrorType = "timeout_error"
	TypeOverloaded      ErrorType = "overloaded_error"
)

// An Error is the only error with a public face. Its message is shown to the
// caller as it is: it says what is wrong and what to do, and holds no secret and
// no text of an internal error. Everything else becomes [TypeAPI] at the door.
type Error struct {
	Status  int
	Type    ErrorType
	Message string

	// Details is sent as error.details when not nil. By convention it has
	// error_code and error_visibility.
	Details map[string]any

	// Retry says whether trying again may help. Nil leaves it to the client;
	// otherwise it is sent as x-should-retry.
	Retry *bool

	// RetryAfter is sent as retry-after, in whole seconds, when positive.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Message }

// ErrorBody is the JSON envelope of an [Error].
type ErrorBody struct {
	Type      string      `json:"type"` // "error"
	Error     ErrorDetail `json:"error"`
	RequestID RequestID   `json:"request_id,omitempty"`
}

// ErrorDetail is the inner object of an [ErrorBody].
type ErrorDetail struct {
	Type    ErrorType      `json:"type"`
	Message string         `json:"message"`
	Details map[string]any `json:"details,omitempty"`
}

// Body returns the envelope of e for one request.
func (e *Error) Body(id RequestID) ErrorBody {
	return ErrorBody{"error", ErrorDetail{e.Type, e.Message, e.Details}, id}
}

// AsError returns the public error in err's chain, or nil.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return nil
}

func newError(status int, t ErrorType, format string, args []any) *Error {
	return &Error{Status: status, Type: t, Message: fmt.Sprintf(format, args...)}
}

// Invalid is a 400: the request itself is wrong.
func Invalid(format string, args ...any) *Error {
	return newError(http.StatusBadRequest, TypeInvalidRequest, format, args)
}

// InvalidCode is a 400 with a machine-readable code in its details.
func InvalidCode(code, format string, args ...any) *Error {
	e := Invalid(format, args...)
	e.Details = map[string]any{"error_code": code, "error_visibility": "user_facing"}
	return e
}

// Unauthenticated is a 401: no credential, or one that is not valid.
func Unauthenticated(format string, args ...any) *Error {
	return newError(http.StatusUnauthorized, TypeAuthentication, format, args)
}

// Forbidden is a 403: a valid credential of the wrong kind.
func Forbidden(format string, args ...any) *Error {
	return newError(http.StatusForbidden, TypePermission, format, args)
}

// NotFound is a 404. "Not yours" and "not there" are the same answer.
func NotFound(format string, args ...any) *Error {
	return newError(http.StatusNotFound, TypeNotFound, format, args)
}

// Conflict is a semantic 409. Trying again cannot help, and says so: the
// official SDKs would otherwise repeat every 409.
func Conflict(format string, args ...any) *Error {
	e := newError(http.StatusConflict, TypeConflict, format, args)
	no := false
	e.Retry = &no
	return e
}

// TooLarge is a 413.
func TooLarge(format string, args ...any) *Error {
	return newError(http.StatusRequestEntityTooLarge, TypeRequestTooLarge, format, args)
}

// Overloaded is a 529: a stated limit of this server is reached for now.
func Overloaded(after time.Duration, format string, args ...any) *Error {
	e := newError(529, TypeOverloaded, format, args)
	e.RetryAfter = after
	return e
}

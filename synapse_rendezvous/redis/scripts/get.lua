-- Returns the value.
return {'ok', now, value, ended}

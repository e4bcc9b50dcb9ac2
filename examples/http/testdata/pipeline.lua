-- Makes wrk send 16 requests at once.
init = function(args)
	local r = {}
	for i = 1, 16 do
		r[i] = wrk.format("GET", "/" .. i)
	end
	requests = table.concat(r)
end

request = function()
	return requests
end

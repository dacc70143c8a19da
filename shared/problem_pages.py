"""The pages at `/problems/<name>`, to which the `type` of a problem answer leads; in plain text."""

from fastapi import APIRouter, HTTPException, Response

from shared.problems import PROBLEM_TYPES, PROBLEMS_PATH


def create_problem_pages() -> APIRouter:
    """Return the route of the pages, which answers to everybody."""
    router = APIRouter(include_in_schema=False)

    @router.get(f"{PROBLEMS_PATH}/{{name}}")
    async def page(name: str) -> Response:
        if name not in PROBLEM_TYPES:
            raise HTTPException(404)
        return Response(PROBLEM_TYPES[name].page(), media_type="text/plain")

    return router
